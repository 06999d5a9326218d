// The preview picture in a concept's metadata, examined before the browser decodes it: its bytes may be a stranger's.

const MAX_BYTES = 12 * 1024; // as MAX_PREVIEW and MAX_SIDE in perfusion_core/concept_file.py
const MAX_SIDE = 1024;
const FRAMES = [0xc0, 0xc1, 0xc2];
const SCAN = 0xda;

function mayStandBeforeScan(marker) {
  return [0xc4, 0xdb, 0xdd, 0xfe].includes(marker) || (marker >= 0xe0 && marker <= 0xef);
}

// Width and height of a JPEG picture, from its header alone; null for anything else. The same rules as in perfusion_core/jpeg.py.
export function sizeOf(bytes) {
  if (bytes[0] !== 0xff || bytes[1] !== 0xd8) return null;
  let at = 2;
  let size = null;
  while (at + 4 <= bytes.length && bytes[at] === 0xff) {
    const marker = bytes[at + 1];
    if (marker === 0xff) {
      at += 1; // a fill byte
      continue;
    }
    const length = bytes[at + 2] * 256 + bytes[at + 3];
    const segment = bytes.subarray(at + 4, at + 2 + length);
    if (marker === SCAN) return size;
    if (FRAMES.includes(marker) && !size && segment.length >= 6 && segment[0] === 8) {
      size = [segment[3] * 256 + segment[4], segment[1] * 256 + segment[2]];
    } else if (!mayStandBeforeScan(marker) || length < 2) {
      return null;
    }
    at += 2 + length;
  }
  return null;
}

// The preview as an address for an <img>, or "" if there is none that may be shown.
export function previewOf(metadata) {
  try {
    const [picture] = JSON.parse(metadata.ssmd_cover_images ?? "[]");
    if (typeof picture !== "string" || picture.length > (MAX_BYTES * 4) / 3) return "";
    const size = sizeOf(Uint8Array.from(atob(picture), (each) => each.charCodeAt(0)));
    const good = size !== null && size.every((side) => side >= 1 && side <= MAX_SIDE);
    // Encoded anew: atob forgives spaces and the like, and an address would carry them on.
    return good ? `data:image/jpeg;base64,${btoa(atob(picture))}` : "";
  } catch {
    return "";
  }
}
