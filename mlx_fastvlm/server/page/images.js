// What happens to an image before it is sent. Sizes are in pixels.

export const LONGEST = 2048; // side of what is sent: twice what the model looks at
const AS_THEY_ARE = ["image/jpeg", "image/png", "image/webp", "image/gif"];

/** The size with the same proportions whose longer side is at most `longest`; never larger than it was. */
export function fitted(width, height, longest) {
  const scale = Math.min(1, longest / Math.max(width, height));
  return { width: Math.max(1, Math.round(width * scale)), height: Math.max(1, Math.round(height * scale)) };
}

/** Whether the file is sent as it is; others are drawn again. */
export function isSentAsItIs(type, width, height) {
  return AS_THEY_ARE.includes(type) && Math.max(width, height) <= LONGEST;
}

/** The type that an image is drawn as: PNG keeps the sharp edges that PNG files have. */
export function drawnType(type) {
  return type === "image/png" ? "image/png" : "image/jpeg";
}

function isHeic(name, type) {
  return /^image\/hei[cf]/i.test(type) || /\.hei[cf]$/i.test(name);
}

/** Why a file can't be sent, for people. */
export function unreadable(name, type) {
  if (isHeic(name, type)) {
    return `${name} is HEIC, which this browser can't read. Send it as JPEG: on a Mac, open it in Preview and export it.`;
  }
  return `${name} is no image that this browser can read. Send it as JPEG or PNG.`;
}
