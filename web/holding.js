// Concept in Workflow: a card of the concept that the node holds, and a list to choose one from.
import { Card, WIDTH } from "./card.js";
import { contentOf, listed } from "./server.js";
import { say } from "./texts.js";
import { after, changing, named, setOptions, settled } from "./widgets.js";

const MAX_TEXT = 2 ** 20; // as in perfusion_core/concept_file.py

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

export function setUpHolding(node) {
  const data = named(node, "data");
  const card = new Card(node);

  const show = settled(() => {
    if (!data.value) return card.say(say("holdsNone"));
    try {
      if (data.value.length > MAX_TEXT) throw new Error("too long to be looked at");
      card.show(metadataOf(bytesOf(data.value)), data.value.length);
    } catch {
      card.say(say("holdsOther"));
    }
  });

  const none = say("choose");
  const choose = node.addWidget("combo", "hold", none, () => {}, { values: [none], serialize: false });
  choose.serialize = false;
  choose.label = say("hold");
  choose.tooltip = say("holdHelp");
  let asked = 0;

  async function hold(name) {
    if (name === none) return;
    const mine = ++asked;
    try {
      const content = base64Of(await contentOf(name));
      if (mine !== asked) return; // another was chosen in the meantime
      changing(() => (data.value = content));
      show();
    } catch (error) {
      if (mine === asked) card.say(error.message);
    }
    choose.value = none; // the held concept is a copy, and the file of that name may change later
    node.setDirtyCanvas(true, true);
  }

  after(choose, "callback", () => hold(choose.value));
  after(node, "onConfigure", show);
  after(data, "callback", show); // as where a graph without a page's layout is loaded
  node.refreshComboInNode = settled(async () => {
    try {
      setOptions(node, choose, [none, ...(await listed())]);
    } catch (error) {
      card.say(error.message);
    }
  });
  node.refreshComboInNode();
  show();
  node.setSize([Math.max(WIDTH, node.size[0]), node.computeSize()[1]]);
}
