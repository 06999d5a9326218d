// Train Concept: the settings that most people need in sight, the others behind one click that the node remembers. The new renderer
// does this by itself for all inputs that the server calls advanced.
import { say } from "./texts.js";
import { after, named } from "./widgets.js";

const REMEMBERED = "all settings";
const made = new WeakMap(); // node -> the values that its widgets had at first

// Whether these settings of a node still have the values that it was made with.
export function isAsMade(node, names) {
  return names.every((name) => named(node, name)?.value === made.get(node)?.[name]);
}

export function setUpSettings(node) {
  made.set(node, Object.fromEntries(node.widgets.map((widget) => [widget.name, widget.value])));
  for (const widget of node.widgets.filter((each) => each.options?.advanced)) {
    widget.advanced = true;
    // The classic canvas leaves room for what is advanced, but none for what is hidden.
    Object.defineProperty(widget, "hidden", { get: () => !node.showAdvanced && !window.LiteGraph?.vueNodesMode, set: () => {}, configurable: true });
  }
  const button = node.addWidget("button", "all settings", null, () => open(!node.showAdvanced, true), { serialize: false, canvasOnly: true });
  button.serialize = false;

  function open(all, fitted) {
    node.showAdvanced = all;
    node.properties[REMEMBERED] = all;
    button.label = say(all ? "fewer" : "all");
    const [width, height] = node.computeSize();
    node.setSize([Math.max(node.size[0], width), fitted ? height : Math.max(node.size[1], height)]);
    node.setDirtyCanvas?.(true, true);
  }

  // The host may have stored it too, as it does for what it folds up itself.
  after(node, "onConfigure", (stored) => open(Boolean(stored?.showAdvanced ?? node.properties[REMEMBERED]), false));
  open(false, true);
}
