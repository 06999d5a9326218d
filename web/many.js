// Load Concepts: a row for each concept, with a toggle, its name, strength and bias; the last row adds one.
import { chooseConcept } from "./gallery.js";
import { listed, plain } from "./server.js";
import { say } from "./texts.js";
import { after, changing, named, settled } from "./widgets.js";

const ROW = 30; // pixels

function control(tag, label, values, style = {}) {
  const made = document.createElement(tag);
  made.setAttribute("aria-label", label);
  made.title = label;
  Object.assign(made, values);
  const common = { font: "inherit", color: "inherit", background: "var(--comfy-input-bg, #333)", border: "1px solid var(--border-color, #888)", borderRadius: "4px", minWidth: 0 };
  Object.assign(made.style, common, style);
  return made;
}

function number(label, value, limits, changed) {
  const box = control("input", label, { type: "number", value: value ?? "", placeholder: say("own"), ...limits }, { width: "64px" });
  box.addEventListener("change", () => {
    const given = box.value === "" ? null : Math.min(limits.max, Math.max(limits.min, Number(box.value)));
    box.value = given ?? "";
    changed(given);
  });
  return box;
}

export function setUpMany(node) {
  const data = named(node, "concepts");
  const frame = document.createElement("div");
  Object.assign(frame.style, { display: "flex", flexDirection: "column", gap: "4px", fontSize: "12px", color: "var(--input-text, #ddd)", padding: "2px" });
  const height = () => (rows().length + 1) * ROW + 8;
  const options = { serialize: false, hideOnZoom: false, hideInPanel: true, getMinHeight: height, getMaxHeight: height };
  node.addDOMWidget("rows", "perfusion", frame, options).serialize = false;
  let missing = new Set();

  function rows() {
    try {
      const found = JSON.parse(data.value || "[]");
      return Array.isArray(found) ? found : [];
    } catch {
      return [];
    }
  }

  // Rows are drawn anew only if there are others: what is being typed in or clicked must stay where it is.
  function change(act, anew = true) {
    const changed = rows();
    act(changed);
    changing(() => {
      data.value = JSON.stringify(changed);
      if (anew) draw();
    });
  }

  async function choose(i) {
    let name;
    try {
      name = await chooseConcept();
    } catch (error) {
      frame.lastChild.title = error.message;
      return;
    }
    if (name) change((all) => (i < all.length ? (all[i].name = name) : all.push({ name, on: true, strength: null, bias: null })));
  }

  function rowOf(row, i) {
    const line = document.createElement("div");
    Object.assign(line.style, { display: "flex", gap: "6px", alignItems: "center", height: `${ROW - 4}px`, flex: "none" });
    const on = control("input", say("rowOn", { name: row.name }), { type: "checkbox", checked: row.on !== false });
    on.addEventListener("change", () => {
      change((all) => (all[i].on = on.checked), false);
      name.style.opacity = on.checked ? 1 : 0.6;
    });
    const name = control("button", say("rowName"), { type: "button", textContent: String(row.name).replace(/\.safetensors$/, "") }, {
      flex: 1, textAlign: "left", overflow: "hidden", textOverflow: "ellipsis", whiteSpace: "nowrap", cursor: "pointer", padding: "3px 6px",
      textDecoration: missing.has(row.name) ? "line-through" : "none", opacity: row.on === false ? 0.6 : 1,
    });
    if (missing.has(row.name)) name.title = say("missing");
    name.addEventListener("click", () => choose(i));
    const strength = number(say("strength"), row.strength, { min: 0, max: 1, step: 0.05 }, (value) => change((all) => (all[i].strength = value), false));
    const bias = number(say("biasHelp"), row.bias, { min: -1, max: 2, step: 0.05 }, (value) => change((all) => (all[i].bias = value), false));
    const remove = control("button", say("rowRemove", { name: row.name }), { type: "button", textContent: "×" }, { cursor: "pointer", padding: "3px 7px" });
    remove.addEventListener("click", () => change((all) => all.splice(i, 1)));
    line.append(on, name, strength, bias, remove);
    return line;
  }

  function draw() {
    const add = control("button", say("rowAdd"), { type: "button", textContent: say("rowAdd") }, { height: `${ROW - 4}px`, cursor: "pointer", flex: "none" });
    add.addEventListener("click", () => choose(rows().length));
    frame.replaceChildren(...rows().map(rowOf), add);
    const [width, tall] = node.computeSize();
    node.setSize([Math.max(node.size[0], width, 340), tall]);
    node.setDirtyCanvas?.(true, true);
  }

  const look = settled(async () => {
    const before = [...missing].join("\n");
    try {
      const names = new Set((await listed()).map(plain));
      missing = new Set(rows().map((row) => row.name).filter((name) => !names.has(plain(name))));
    } catch {
      missing = new Set(); // nobody knows; a run will say
    }
    if ([...missing].join("\n") !== before) draw();
  });
  const anew = settled(() => {
    draw();
    look();
  });
  after(node, "onConfigure", anew);
  after(data, "callback", anew); // as where a graph without a page's layout is loaded
  node.refreshComboInNode = look;
  draw();
}
