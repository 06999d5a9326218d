// The sentences of this pack's scripts in the page's language: English here, other languages in locales/LANGUAGE/main.json.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

export const ENGLISH = {
  all: "all settings",
  browse: "browse previews…",
  biasHelp: "Bias. Empty: the concept's own. Lower: more of the concept; higher: more of the prompt.",
  broken: "This file is not a usable concept.",
  by: "by {value}",
  choose: "choose a concept…",
  copied: "copied",
  copy: "Copy the trigger word {trigger}",
  find: "find",
  findHelp: "Type part of a trigger word, superclass or name to show only matching concepts.",
  fewer: "fewer settings",
  gallery: "Your concepts",
  gate: "bias {bias}, temperature {temperature}",
  hold: "store",
  holdHelp: "A file in models/perfusion; it is copied into this node.",
  holdsNone: "No concept is stored here yet. Choose one below, and it will be stored in this workflow and in images made with it.",
  holdsOther: "The data in this node is not a concept.",
  inWorkflow: "{size} KB in the workflow",
  large: "{size} KB in the workflow: too much for JPEG images, which can hold only 64 KB of metadata in total; save as PNG or WebP",
  kind: "superclass {superclass}, for {base}",
  licence: "licence {value}",
  linked: "The name comes from another node. After a run, the loaded concept is shown here.",
  made: "created {value}",
  missing: "There is no concept with this name in models/perfusion.",
  noBrackets: "is the trigger word (including the brackets)",
  noCheckpoint: "Could not find which checkpoint Train Concept uses; choose a preset by name.",
  noPreset: "There is no preset for {file}; set the numbers yourself.",
  noneFound: "No concept has “{text}” in its name, trigger word or superclass.",
  noneSaved: "There are no concepts yet: train one, or put a concept file into models/perfusion.",
  own: "default",
  preview: "A preview of {trigger}",
  rowAdd: "add a concept…",
  rowName: "Choose a different concept",
  rowOn: "Use {name}",
  rowRemove: "Remove {name}",
  selectToCopy: "press Ctrl+C",
  strength: "Strength: the share of the edit that is applied. Empty: the concept's own.",
  triggers: "Trigger words",
  serverError: "The server returned an error ({status}).",
  unreachable: "The server is not responding.",
};

let translated = {};

// Waits for the translations; until then, and where there are none, texts are English.
export async function loadTexts() {
  try {
    const language = app.extensionManager?.setting?.get("Comfy.Locale") ?? "en";
    translated = (await api.getCustomNodesI18n())?.[language]?.perfusion ?? {};
  } catch {
    translated = {}; // an older host, or a server that does not answer: English will do
  }
}

export function say(key, values = {}) {
  const text = translated[key] ?? ENGLISH[key];
  return text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}
