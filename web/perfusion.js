// Shows a concept's metadata on the nodes that load or hold it, searches the list of concepts, and copies concepts into workflows.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { previewOf } from "./preview.js";

const LOAD = "PerfusionLoadConcept";
const HOLD = "PerfusionConceptInWorkflow";
const CARD_HEIGHT = 108;
const SHOWN = { author: "by", license: "licence", date: "made", description: "" };
const CHOOSE = "choose a concept…";
const MAX_TEXT = 2 ** 20; // as in perfusion_core/concept_file.py
const MAX_LINE = 2000; // characters of a text from a file that are shown

// ---- reading a concept file's metadata ----------------------------------------------------------------------------------------

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (each) => each.charCodeAt(0));
}

function base64Of(bytes) {
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return btoa(text);
}

// A safetensors file starts with the length of its header (8 bytes, little-endian), followed by the header as JSON.
function metadataOf(bytes) {
  const length = Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true));
  return JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length))).__metadata__ ?? {};
}

// ---- the card ----------------------------------------------------------------------------------------------------------------

function element(tag, style, text = "") {
  const made = document.createElement(tag);
  Object.assign(made.style, style);
  made.textContent = text.slice(0, MAX_LINE); // never HTML: the text comes from an untrusted file
  return made;
}

async function copy(text, beside) {
  if (navigator.clipboard && window.isSecureContext) return navigator.clipboard.writeText(text);
  // Browsers offer the clipboard API in secure contexts only, not on a plain HTTP page from another machine.
  const box = element("textarea", { position: "fixed", opacity: 0 });
  beside.after(box);
  box.value = text;
  box.select();
  document.execCommand("copy");
  box.remove();
}

function triggerButton(trigger) {
  const button = element("button", { cursor: "pointer", font: "inherit", fontWeight: "bold", padding: "1px 6px" }, trigger);
  button.title = "Copy the trigger word";
  button.addEventListener("click", async () => {
    await copy(trigger, button);
    button.textContent = "copied";
    setTimeout(() => (button.textContent = trigger), 900);
  });
  return button;
}

function fill(card, metadata, size) {
  card.replaceChildren();
  const texts = Object.fromEntries(Object.entries(metadata).filter(([, value]) => typeof value === "string"));
  const trigger = (texts["modelspec.trigger_phrase"] ?? "?").slice(0, MAX_LINE);
  const preview = previewOf(texts);
  if (preview) {
    const picture = element("img", { height: "100%", aspectRatio: "1", objectFit: "cover", borderRadius: "4px" });
    picture.src = preview;
    picture.alt = `A preview of ${trigger}`;
    card.append(picture);
  }
  const lines = element("div", { minWidth: 0, overflow: "auto", lineHeight: "1.35", overflowWrap: "anywhere" });
  lines.append(triggerButton(trigger));
  const about = [`a ${texts.superclass ?? "?"}, for ${texts["modelspec.base_model"] ?? "?"}`];
  if (size) about.push(`${Math.ceil(size / 1024)} KB in the workflow`);
  for (const [key, word] of Object.entries(SHOWN)) {
    const value = texts[`modelspec.${key}`];
    if (value) about.push(`${word} ${value}`.trim());
  }
  for (const line of about) lines.append(element("div", {}, line));
  card.append(lines);
}

function say(card, text) {
  card.replaceChildren(element("div", { opacity: 0.7 }, text));
}

function addCard(node) {
  const style = { display: "flex", gap: "8px", height: "100%", fontSize: "12px", color: "var(--input-text, #ddd)" };
  const card = element("div", { ...style, overflow: "hidden", padding: "2px" });
  const heights = { getMinHeight: () => CARD_HEIGHT, getMaxHeight: () => CARD_HEIGHT };
  const widget = node.addDOMWidget("card", "perfusion", card, { serialize: false, hideOnZoom: false, ...heights });
  widget.serialize = false;
  return card;
}

function whenChanged(widget, act) {
  const before = widget.callback;
  widget.callback = function (...given) {
    const result = before?.apply(this, given);
    act(widget.value);
    return result;
  };
}

function afterConfigure(node, act) {
  const before = node.onConfigure;
  node.onConfigure = function (...given) {
    before?.apply(this, given);
    act();
  };
}

function named(node, name) {
  return node.widgets.find((each) => each.name === name);
}

// ---- Load Concept ------------------------------------------------------------------------------------------------------------

async function metadataIn(name) {
  try {
    const answer = await api.fetchApi(`/view_metadata/perfusion?filename=${encodeURIComponent(name)}`);
    return answer.ok ? await answer.json() : null;
  } catch {
    return null; // the server is unreachable, which is reported elsewhere where it matters
  }
}

async function wordsOfAll() {
  try {
    const answer = await api.fetchApi("/perfusion/words");
    return answer.ok ? await answer.json() : {};
  } catch {
    return {}; // as above; searching by name still works
  }
}

function setUpLoading(node) {
  const chosen = named(node, "concept_name");
  const find = node.addWidget("text", "find", "", () => narrow(), { serialize: false });
  find.serialize = false;
  find.tooltip = "Part of a trigger word, of a superclass or of a name: the list then has these concepts alone.";
  const card = addCard(node);
  let all = chosen.options.values;
  const show = async () => {
    const name = chosen.value;
    const metadata = chosen.options.values.includes(name) ? await metadataIn(name) : null;
    if (name !== chosen.value) return; // another concept has been chosen in the meantime
    if (metadata) fill(card, metadata, 0);
    else say(card, "No such concept in models/perfusion.");
  };
  const narrow = async () => {
    const text = find.value.trim().toLowerCase();
    const words = text ? await wordsOfAll() : {};
    if (text !== find.value.trim().toLowerCase()) return; // the text has changed in the meantime
    const found = all.filter((name) => [name, ...(words[name] ?? [])].some((each) => each.toLowerCase().includes(text)));
    if (!found.length) return say(card, `No concept has “${text}” in its name, its trigger word or its superclass.`);
    chosen.options.values = found;
    if (!found.includes(chosen.value) && text) chosen.value = found[0];
    show();
    node.setDirtyCanvas(true, true);
  };
  whenChanged(chosen, show);
  afterConfigure(node, show);
  node.refreshComboInNode = () =>
    setTimeout(() => {
      all = chosen.options.values; // the host has put the new names there by now
      narrow();
    });
  show();
  node.setSize(node.computeSize());
}

// ---- Concept in Workflow -----------------------------------------------------------------------------------------------------

async function listed() {
  const answer = await api.fetchApi("/models/perfusion");
  const names = answer.ok ? await answer.json() : [];
  return names.filter((name) => !/^\.work[\\/]/.test(name));
}

async function held(name) {
  const answer = await api.fetchApi(`/perfusion/file?name=${encodeURIComponent(name)}`);
  if (!answer.ok) throw new Error((await answer.json()).error);
  return base64Of(new Uint8Array(await answer.arrayBuffer()));
}

function setUpHolding(node) {
  const data = named(node, "data");
  const card = addCard(node);
  const show = () => {
    if (!data.value) return say(card, "Holds no concept yet. Choose one below: it will lie inside this workflow and its pictures.");
    try {
      if (data.value.length > MAX_TEXT) throw new Error("too long to be looked at");
      fill(card, metadataOf(bytesOf(data.value)), data.value.length);
    } catch {
      say(card, "What this node holds is not a concept.");
    }
  };
  const names = [];
  const choose = node.addWidget("combo", "hold", CHOOSE, () => {}, { values: () => [CHOOSE, ...names], serialize: false });
  choose.serialize = false;
  choose.tooltip = "A file in models/perfusion, which is copied into this node.";
  const refresh = async () => names.splice(0, names.length, ...(await listed()));
  whenChanged(choose, async (name) => {
    if (name === CHOOSE) return;
    try {
      data.value = await held(name);
      show();
    } catch (error) {
      say(card, error.message);
    }
    choose.value = CHOOSE; // the held concept is a copy, and the file of that name may change later
    node.graph?.afterChange?.();
    node.setDirtyCanvas(true, true);
  });
  node.refreshComboInNode = refresh;
  afterConfigure(node, show);
  refresh();
  show();
  node.setSize(node.computeSize());
}

app.registerExtension({
  name: "perfusion",
  nodeCreated(node) {
    if (node.comfyClass === LOAD) setUpLoading(node);
    if (node.comfyClass === HOLD) setUpHolding(node);
  },
});
