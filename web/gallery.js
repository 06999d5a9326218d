// A list of the user's concepts with their pictures, to choose one from.
import { listed, pictureAddress, wordsOfAll } from "./server.js";
import { say } from "./texts.js";

const STYLE = `
.perfusion-gallery { width: min(720px, 92vw); max-height: 80vh; padding: 12px; border: 1px solid var(--border-color, #888); border-radius: 8px;
  background: var(--comfy-menu-bg, #202020); color: var(--input-text, #ddd); font: 13px sans-serif; }
.perfusion-gallery::backdrop { background: rgb(0 0 0 / 40%); }
.perfusion-gallery input { width: 100%; box-sizing: border-box; margin-bottom: 8px; padding: 6px; font: inherit; color: inherit;
  background: var(--comfy-input-bg, #333); border: 1px solid var(--border-color, #888); border-radius: 4px; }
.perfusion-gallery .concepts { display: grid; grid-template-columns: repeat(auto-fill, minmax(120px, 1fr)); gap: 8px; overflow: auto; max-height: 64vh; }
.perfusion-gallery button { font: inherit; color: inherit; text-align: left; padding: 6px; cursor: pointer; overflow-wrap: anywhere;
  background: var(--comfy-input-bg, #333); border: 1px solid transparent; border-radius: 6px; }
.perfusion-gallery button:focus-visible, .perfusion-gallery button:hover { border-color: currentColor; outline: none; }
.perfusion-gallery img { width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 4px; display: block; margin-bottom: 4px; }
`;

export function addStyle(id, text) {
  if (document.getElementById(id)) return;
  const style = document.createElement("style");
  style.id = id;
  style.textContent = text;
  document.head.append(style);
}

// The picture of a concept; it takes no room where the concept has none.
export function pictureOf(name, alt) {
  const picture = document.createElement("img");
  picture.loading = "lazy";
  picture.alt = alt;
  picture.src = pictureAddress(name);
  picture.addEventListener("error", () => picture.remove());
  return picture;
}

function entry(name, [trigger, superclass], close) {
  const button = document.createElement("button");
  button.type = "button";
  const text = document.createElement("div");
  text.textContent = trigger ? `${trigger} · ${superclass}` : "";
  const file = document.createElement("small");
  file.textContent = name.replace(/\.safetensors$/, "");
  button.append(...(trigger ? [pictureOf(name, "")] : []), text, file);
  button.addEventListener("click", () => close(name));
  return button;
}

// Opens the list; resolves to the name that was chosen, or null.
export async function chooseConcept() {
  const [names, words] = await Promise.all([listed(), wordsOfAll()]);
  addStyle("perfusion-gallery-style", STYLE);
  const dialog = document.createElement("dialog");
  dialog.className = "perfusion-gallery";
  dialog.setAttribute("aria-label", say("gallery"));
  const find = document.createElement("input");
  find.placeholder = say("findHelp");
  find.setAttribute("aria-label", say("find"));
  const grid = document.createElement("div");
  grid.className = "concepts";
  dialog.append(find, grid);
  // The page's own shortcuts must not hear what is typed here.
  for (const kind of ["keydown", "keyup", "keypress", "wheel", "paste", "copy"]) dialog.addEventListener(kind, (event) => event.stopPropagation());
  return new Promise((resolve) => {
    let chosen = null;
    const close = (name) => {
      chosen = name;
      dialog.close();
    };
    const entries = names.map((name) => {
      const about = words[name] ?? ["", ""];
      return [[name, ...about].join("\n").toLowerCase(), entry(name, about, close)];
    });
    const narrow = () => {
      const text = find.value.trim().toLowerCase();
      const found = entries.filter(([about]) => about.includes(text)).map(([, button]) => button);
      grid.replaceChildren(...(found.length ? found : [say(names.length ? "noneFound" : "noneSaved", { text })]));
    };
    find.addEventListener("input", narrow);
    find.addEventListener("keydown", (event) => {
      if (event.isComposing || event.keyCode === 229) return; // an input method's own keys
      if (event.key === "Enter") {
        event.preventDefault(); // or it would press the button that has the focus once the list is closed
        grid.querySelector("button")?.click();
      }
      if (event.key === "ArrowDown") grid.querySelector("button")?.focus();
    });
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(chosen);
    });
    narrow();
    document.body.append(dialog);
    dialog.showModal();
    find.focus();
  });
}
