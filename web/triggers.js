// Completes trigger words while one types a prompt, in any text box of the page.
import { addStyle, pictureOf } from "./gallery.js";
import { wordsOfAll } from "./server.js";
import { say } from "./texts.js";

const STYLE = `
.perfusion-words { position: fixed; z-index: 100000; max-height: 260px; min-width: 180px; max-width: 420px; overflow: auto; padding: 4px; border-radius: 6px;
  background: var(--comfy-menu-bg, #202020); color: var(--input-text, #ddd); border: 1px solid var(--border-color, #888); font: 13px sans-serif; }
.perfusion-words [role=option] { display: flex; gap: 8px; align-items: center; padding: 3px 6px; border-radius: 4px; cursor: pointer; }
.perfusion-words [aria-selected=true] { background: var(--comfy-input-bg, #444); outline: 1px solid currentColor; }
.perfusion-words img { width: 32px; height: 32px; object-fit: cover; border-radius: 3px; flex: none; }
.perfusion-words small { opacity: 0.75; }
`;
const MOST = 12; // words that are shown
const SHORTEST = 3; // letters of a name without its bracket after which it is completed

let open = null; // { box, list, words, at, typed, chosen }
let composing = false;

// What is being typed before the caret, if it may become a trigger word: "<my-t", or the bare name of one.
export function typedBefore(text) {
  const found = /(<[\p{L}\p{M}\p{N}_-]*|(?<![\p{L}\p{M}\p{N}_<-])[\p{L}\p{M}\p{N}_-]+)$/u.exec(text);
  return found && (found[0].startsWith("<") || [...found[0]].length >= SHORTEST) ? found[0] : "";
}

// The words that begin with what was typed, those of `first` before the others: [trigger, superclass, name of the file].
export function matching(typed, words, first) {
  const start = typed.toLowerCase();
  const found = new Map();
  for (const [name, [trigger, superclass]] of Object.entries(words)) {
    const key = trigger.toLowerCase();
    const fits = start.startsWith("<") ? key.startsWith(start) : key.startsWith(`<${start}`) && superclass.toLowerCase() !== start;
    if (trigger && fits && (!found.has(trigger) || first.has(name))) found.set(trigger, [trigger, superclass, name]);
  }
  const all = [...found.values()].sort(([one], [other]) => one.localeCompare(other));
  return [...all.filter(([, , name]) => first.has(name)), ...all.filter(([, , name]) => !first.has(name))].slice(0, MOST);
}

function close() {
  open?.list.remove();
  open?.box.removeAttribute("aria-activedescendant");
  open = null;
}

function mark(i) {
  open.chosen = (i + open.words.length) % open.words.length;
  [...open.list.children].forEach((option, n) => option.setAttribute("aria-selected", String(n === open.chosen)));
  const option = open.list.children[open.chosen];
  option.scrollIntoView({ block: "nearest" });
  open.box.setAttribute("aria-activedescendant", option.id);
}

// Whether the caret still stands behind what was typed.
function isThere() {
  const { box, at, typed } = open;
  return box.selectionStart === at && box.selectionEnd === at && box.value.slice(0, at).endsWith(typed);
}

// Puts the chosen word in the place of what was typed, as typing would: the page hears of it, and Ctrl+Z takes it back.
function take() {
  if (!isThere()) return close();
  const { box, at, typed, words, chosen } = open;
  const [trigger] = words[chosen];
  // The rest of a word in brackets goes too.
  const rest = typed.startsWith("<") ? /^[\p{L}\p{M}\p{N}_-]*>/u.exec(box.value.slice(at)) : null;
  const end = at + (rest?.[0].length ?? 0);
  close();
  box.focus();
  box.setSelectionRange(at - typed.length, end);
  if (!document.execCommand("insertText", false, trigger)) {
    box.setRangeText(trigger, at - typed.length, end, "end");
    box.dispatchEvent(new Event("input", { bubbles: true }));
  }
}

// Where on the screen a text box's caret stands.
function caretOf(box, at) {
  const style = getComputedStyle(box);
  const mirror = document.createElement("div");
  for (const name of ["font", "letterSpacing", "padding", "border", "boxSizing", "lineHeight", "tabSize"]) mirror.style[name] = style[name];
  Object.assign(mirror.style, { position: "fixed", visibility: "hidden", whiteSpace: "pre-wrap", overflowWrap: "break-word", width: `${box.clientWidth}px` });
  mirror.textContent = box.value.slice(0, at);
  const end = document.createElement("span");
  end.textContent = "\u200b";
  mirror.append(end);
  document.body.append(mirror);
  const scale = box.getBoundingClientRect().width / (box.offsetWidth || 1); // the canvas scales its text boxes
  const [x, y] = [end.offsetLeft, end.offsetTop + end.offsetHeight - box.scrollTop];
  mirror.remove();
  const frame = box.getBoundingClientRect();
  return [frame.left + x * scale, Math.min(frame.bottom, frame.top + y * scale)];
}

async function offer(box, firstNames) {
  const at = box.selectionStart;
  const typed = box.selectionEnd === at ? typedBefore(box.value.slice(0, at)) : "";
  if (!typed || composing) return close();
  const words = matching(typed, await wordsOfAll(), firstNames());
  if (document.activeElement !== box || box.selectionStart !== at || composing) return; // typed on in the meantime
  close();
  if (!words.length) return;
  addStyle("perfusion-words-style", STYLE);
  const list = document.createElement("div");
  list.className = "perfusion-words";
  list.setAttribute("role", "listbox");
  list.setAttribute("aria-label", say("triggers"));
  words.forEach(([trigger, superclass, name], i) => {
    const option = document.createElement("div");
    option.id = `perfusion-word-${i}`;
    option.setAttribute("role", "option");
    const about = document.createElement("div");
    about.textContent = trigger;
    const more = document.createElement("small");
    more.textContent = typed.startsWith("<") ? ` ${superclass}` : ` ${say("noBrackets")}`;
    about.append(more);
    option.append(pictureOf(name, ""), about);
    option.addEventListener("pointerdown", (event) => {
      event.preventDefault(); // the text box keeps the focus
      open.chosen = i;
      take();
    });
    list.append(option);
  });
  document.body.append(list);
  const [left, top] = caretOf(box, at);
  Object.assign(list.style, { left: `${Math.min(left, innerWidth - list.offsetWidth - 8)}px`, top: `${Math.min(top + 4, innerHeight - list.offsetHeight - 8)}px` });
  // A bare name may be meant as it is: only a key that no prompt needs takes the word then.
  open = { box, list, words, at, typed, chosen: 0, moved: typed.startsWith("<") };
  mark(0);
}

function press(event) {
  if (!open || event.target !== open.box || event.isComposing) return;
  if (event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return; // the page's own
  if (!isThere()) return close();
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (step) {
    if (!open.moved) open.chosen = step > 0 ? -1 : 0;
    open.moved = true;
    mark(open.chosen + step);
  } else if (event.key === "Tab" || (event.key === "Enter" && open.moved)) take();
  else if (event.key === "Escape") close();
  else return;
  event.preventDefault();
  event.stopImmediatePropagation();
}

// Listens on the whole page; `firstNames` returns the files of the concepts that the graph uses, whose words come first.
export function completeTriggers(firstNames) {
  const isBox = (box) => box instanceof HTMLTextAreaElement && !box.readOnly;
  document.addEventListener("compositionstart", () => ((composing = true), close()), true);
  document.addEventListener("compositionend", (event) => ((composing = false), isBox(event.target) && offer(event.target, firstNames)), true);
  document.addEventListener("input", (event) => isBox(event.target) && !event.isComposing && offer(event.target, firstNames), true);
  document.addEventListener("keydown", press, true);
  document.addEventListener("focusout", (event) => open && event.target === open.box && close(), true);
  document.addEventListener("scroll", (event) => open && !open.list.contains(event.target) && close(), true);
}
