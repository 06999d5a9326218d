// What a node has to say after a run, on the node itself: the host draws texts on its own text nodes alone.
import { Card } from "./card.js";
import { after } from "./widgets.js";

const HEIGHT = 64;

export function setUpMessages(node) {
  let card = null;
  after(node, "onExecuted", (message) => {
    const text = message?.text?.join("\n");
    if (!text) return;
    if (!card) {
      card = new Card(node, "message", HEIGHT);
      const [width, height] = node.computeSize();
      node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
    }
    card.say(text);
    node.setDirtyCanvas?.(true, true);
  });
}
