// Cameras, as browsers give them.

const WANTED = { width: { ideal: 1280 } };
const NOT_HERE = "Browsers give the camera only to pages of this machine (http://127.0.0.1) or over HTTPS.";
// By the names of getUserMedia's errors.
const PROBLEMS = {
  NotAllowedError: "The camera was refused. Allow it for this page in the browser, and start it again.",
  NotFoundError: "No camera was found. Plug one in, and start it again.",
  OverconstrainedError: "That camera is gone. Choose another one.",
  NotReadableError: "The camera can't be read; perhaps another program uses it.",
};

/**
 * The stream of a camera; an Error for people where there is none.
 *
 * @param {string} id of `cameras`; "" for one that looks away from who holds the phone
 */
export async function openCamera(id) {
  if (!navigator.mediaDevices) throw new Error(NOT_HERE);
  const which = id === "" ? { facingMode: { ideal: "environment" } } : { deviceId: { exact: id } };
  try {
    return await navigator.mediaDevices.getUserMedia({ video: { ...WANTED, ...which }, audio: false });
  } catch (error) {
    throw new Error(PROBLEMS[error.name] ?? `The camera can't be used (${error.name}).`);
  }
}

/** The cameras that there are, [{id, name}]; browsers tell their names only once one was allowed. */
export async function cameras() {
  const devices = await navigator.mediaDevices.enumerateDevices();
  return devices
    .filter(({ kind }) => kind === "videoinput")
    .map(({ deviceId: id, label }, i) => ({ id, name: label || `Camera ${i + 1}` }));
}

/** Which camera a stream is of. */
export function cameraOf(stream) {
  return stream.getVideoTracks()[0].getSettings().deviceId;
}

/** Let go of a camera. */
export function release(stream) {
  for (const track of stream?.getTracks() ?? []) track.stop();
}
