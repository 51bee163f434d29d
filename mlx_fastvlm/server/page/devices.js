// Cameras, as browsers give them.

const WANTED = { width: { ideal: 1280 } };
const NOT_HERE = "Browsers allow the camera only on pages from this machine (http://127.0.0.1) or over HTTPS.";
// By the names of getUserMedia's errors.
const PROBLEMS = {
  NotAllowedError: "Camera access was denied. Allow it for this page in the browser, then start the camera again.",
  NotFoundError: "No camera was found. Connect one and start it again.",
  OverconstrainedError: "That camera is no longer there. Choose another one.",
  NotReadableError: "The camera can't be read; another program may be using it.",
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
