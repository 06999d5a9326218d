// Train Concept: the settings that most people need in sight, the others behind one click that the node remembers. The new renderer
// does this by itself for all inputs that the server calls advanced.
import { say } from "./texts.js";
import { after } from "./widgets.js";

const REMEMBERED = "all settings";

export function setUpSettings(node) {
  for (const widget of node.widgets.filter((each) => each.options?.advanced)) {
    widget.advanced = true;
    // The classic canvas leaves room for what is advanced, but none for what is hidden.
    Object.defineProperty(widget, "hidden", { get: () => !node.showAdvanced && !window.LiteGraph?.vueNodesMode, set: () => {}, configurable: true });
  }
  const button = node.addWidget("button", "all settings", null, () => open(!node.showAdvanced), { serialize: false, canvasOnly: true });
  button.serialize = false;

  function open(all) {
    node.showAdvanced = all;
    node.properties[REMEMBERED] = all;
    button.label = say(all ? "fewer" : "all");
    const [width, height] = node.computeSize();
    node.setSize([Math.max(node.size[0], width), height]);
    node.setDirtyCanvas?.(true, true);
  }

  after(node, "onConfigure", () => open(Boolean(node.properties[REMEMBERED])));
  open(false);
}
