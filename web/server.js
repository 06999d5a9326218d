// What the page asks the server about concepts.
import { api } from "../../scripts/api.js";
import { say } from "./texts.js";

async function answered(address) {
  let answer;
  try {
    answer = await api.fetchApi(address);
  } catch {
    throw new Error(say("unreachable"));
  }
  if (answer.ok) return answer;
  let told = "";
  try {
    told = (await answer.json()).error;
  } catch {
    // not JSON: a proxy's page, for example
  }
  throw new Error(told || say("serverError", { status: answer.status }));
}

// A workflow from another system may have other separators.
export const plain = (name) => String(name).replaceAll("\\", "/");

export async function listed() {
  const names = await (await answered("/models/perfusion")).json();
  return names.filter((name) => !/^\.work[\\/]/.test(name));
}

// Metadata of the file of this name; null if the host finds none in it, because it is broken or not there.
export async function metadataIn(name) {
  let answer;
  try {
    answer = await api.fetchApi(`/view_metadata/perfusion?filename=${encodeURIComponent(name)}`);
  } catch {
    throw new Error(say("unreachable"));
  }
  // The host answers 404 for a file without metadata, and 500 for one that is broken.
  if (!answer.ok && ![404, 500].includes(answer.status)) throw new Error(say("serverError", { status: answer.status }));
  try {
    return answer.ok ? await answer.json() : null;
  } catch {
    return null;
  }
}

export async function contentOf(name) {
  const answer = await answered(`/perfusion/file?name=${encodeURIComponent(name)}`);
  return new Uint8Array(await answer.arrayBuffer());
}

const KEPT = 10_000; // milliseconds; files also come from elsewhere
let words = null;
let asked = 0;

// Name of each concept file -> its trigger word and superclass; kept for a while, so that not every key asks the server.
export function wordsOfAll() {
  if (Date.now() - asked > KEPT) words = null;
  if (!words) asked = Date.now();
  words ??= answered("/perfusion/words")
    .then((answer) => answer.json())
    .catch(() => {
      words = null; // searching by name still works, and the next question asks again
      return {};
    });
  return words;
}

export function forgetWords() {
  words = null;
}

// The name of the preset that suits a file in a folder of models, "" if there is none.
export async function presetFor(folder, file) {
  return (await (await answered(`/perfusion/preset?name=${encodeURIComponent(`${folder}/${file}`)}`)).json()).preset;
}

// The address of a concept's picture.
export function pictureAddress(name) {
  return api.apiURL(`/perfusion/picture?name=${encodeURIComponent(name)}`);
}
