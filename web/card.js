// The part of a node that shows a concept, or what the node has to say.
import { previewOf } from "./preview.js";
import { say } from "./texts.js";

const HEIGHT = 108; // pixels; the new renderer gives a widget no height of its own, so percentages have nothing to refer to
export const WIDTH = 300; // of a node with a card, at least
const DETAILS = { author: "by", license: "licence", date: "made" };
const MAX_LINE = 2000; // characters of a text from a file that are shown
const JPEG_LIMIT = 64 - 16; // KB of a concept in base64 beside which a workflow still fits into a JPEG picture

function element(tag, style, text = "") {
  const made = document.createElement(tag);
  Object.assign(made.style, style);
  made.textContent = text.slice(0, MAX_LINE); // never HTML: the text comes from an untrusted file
  return made;
}

// Copies a text; returns whether that worked.
async function copy(text, beside) {
  try {
    if (navigator.clipboard && window.isSecureContext) {
      await navigator.clipboard.writeText(text);
      return true;
    }
  } catch {
    // refused by the browser; the old way may still work
  }
  // Browsers offer the clipboard API in secure contexts only, not on a plain HTTP page from another machine.
  const box = element("textarea", { position: "fixed", opacity: 0 });
  beside.after(box);
  box.value = text;
  box.select();
  const done = document.execCommand("copy");
  box.remove();
  return done;
}

function triggerButton(trigger) {
  const button = element("button", { cursor: "pointer", font: "inherit", fontWeight: "bold", padding: "1px 6px" }, trigger);
  button.title = say("copy", { trigger });
  button.setAttribute("aria-label", button.title);
  button.addEventListener("click", async () => {
    const done = await copy(trigger, button);
    if (!done) window.getSelection()?.selectAllChildren(button);
    button.textContent = done ? say("copied") : trigger;
    if (!done) button.title = say("selectToCopy");
    setTimeout(() => (button.textContent = trigger), 900);
  });
  return button;
}

export class Card {
  // Adds a card to a node.
  constructor(node, name = "card", height = HEIGHT) {
    const style = { display: "flex", gap: "8px", height: `${height - 4}px`, fontSize: "12px", color: "var(--input-text, #ddd)" };
    this.element = element("div", { ...style, overflow: "hidden", padding: "2px", boxSizing: "border-box", userSelect: "text" });
    this.element.setAttribute("role", "status"); // read out when it changes
    this.element.setAttribute("aria-live", "polite");
    const heights = { getMinHeight: () => height, getMaxHeight: () => height };
    const options = { serialize: false, hideOnZoom: false, hideInPanel: true, ...heights };
    this.widget = node.addDOMWidget(name, "perfusion", this.element, options);
    this.widget.serialize = false;
  }

  // Shows a concept from its file's metadata; `size` is that of its text in the workflow, in characters, or 0.
  show(metadata, size = 0) {
    const texts = Object.fromEntries(Object.entries(metadata).filter(([, value]) => typeof value === "string"));
    const trigger = (texts["modelspec.trigger_phrase"] ?? "?").slice(0, MAX_LINE);
    const preview = previewOf(texts);
    const lines = element("div", { minWidth: 0, flex: 1, overflow: "auto", lineHeight: "1.35", overflowWrap: "anywhere" });
    lines.tabIndex = 0; // so that the keyboard can scroll it
    lines.append(triggerButton(trigger));
    const about = [say("kind", { superclass: texts.superclass ?? "?", base: texts["modelspec.base_model"] ?? "?" })];
    const kilobytes = Math.ceil(size / 1024);
    const [bias, temperature] = texts.layers ? (texts.gate ?? "").split(" ") : []; // a word alone has no gate
    if (temperature) about.push(say("gate", { bias, temperature }));
    if (size) about.push(say(kilobytes > JPEG_LIMIT ? "large" : "inWorkflow", { size: kilobytes }));
    for (const [key, word] of Object.entries(DETAILS)) {
      const value = texts[`modelspec.${key}`];
      if (value) about.push(say(word, { value }));
    }
    if (texts["modelspec.description"]) about.push(texts["modelspec.description"]);
    for (const line of about) lines.append(element("div", {}, line));
    this.element.replaceChildren(...(preview ? [pictureOf(preview, trigger)] : []), lines);
  }

  // Shows a text.
  say(text) {
    const lines = element("div", { flex: 1, overflow: "auto", whiteSpace: "pre-wrap", overflowWrap: "anywhere" }, text);
    lines.tabIndex = 0;
    this.element.replaceChildren(lines);
  }
}

function pictureOf(preview, trigger) {
  const side = `${HEIGHT - 8}px`;
  const picture = element("img", { width: side, height: side, flex: "none", objectFit: "cover", borderRadius: "4px" });
  picture.src = preview;
  picture.alt = say("preview", { trigger });
  return picture;
}
