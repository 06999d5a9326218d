// Train Concept: the settings that most people need in sight, the others behind one click that the node remembers. The new renderer
// does this by itself for all inputs that the server calls advanced.
import { say } from "./texts.js";
import { after } from "./widgets.js";

const REMEMBERED = "all settings";

export function setUpSettings(node) {
  for (const widget of node.widgets) if (widget.options?.advanced) widget.advanced = true;
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
