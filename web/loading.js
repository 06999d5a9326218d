// Load Concept: a card of the chosen concept, and a search that narrows its list.
import { Card, WIDTH } from "./card.js";
import { chooseConcept } from "./gallery.js";
import { forgetWords, listed, metadataIn, plain, wordsOfAll } from "./server.js";
import { say } from "./texts.js";
import { after, changing, isLinked, named, setOptions, settled } from "./widgets.js";

const TYPING = 250; // milliseconds without a key after which the list is narrowed
const NO_CONCEPT = "(no concept saved yet)"; // as in nodes/concepts.py

export function setUpLoading(node) {
  const chosen = named(node, "concept_name");
  const find = node.addWidget("text", "find", "", () => narrow(), { serialize: false });
  find.serialize = false;
  find.label = say("find");
  find.tooltip = say("findHelp");
  const browse = node.addWidget("button", "browse", null, () => choose(), { serialize: false });
  browse.serialize = false;
  browse.label = say("browse");
  const card = new Card(node);
  let all = [...chosen.options.values];
  let ran = null; // the name that the last run loaded: it may have come by a link, or from outside of a subgraph
  const nameNow = () => ran ?? (isLinked(node, "concept_name") ? null : chosen.value);

  async function show() {
    const name = nameNow();
    if (name === null) return card.say(say("linked"));
    if (name === NO_CONCEPT) return card.say(say("noneSaved"));
    const here = () => all.find((each) => plain(each) === plain(name));
    try {
      if (!here()) {
        // Saved since the page learned of the files: a node that is made anew, as by Ctrl+Z, knows the list of then.
        const now = await listed();
        if (name !== nameNow()) return;
        if (now.length) all = now;
        if (!here()) return card.say(say("missing"));
        if (!find.value.trim()) setOptions(node, chosen, all);
      }
      const metadata = await metadataIn(here());
      if (name !== nameNow()) return; // another was chosen in the meantime
      if (metadata) card.show(metadata);
      else card.say(say("broken"));
    } catch (error) {
      card.say(error.message);
    }
  }

  async function choose() {
    try {
      const name = await chooseConcept();
      if (name) changing(() => (chosen.value = name));
      chosen.callback?.(chosen.value);
      node.setDirtyCanvas?.(true, true);
    } catch (error) {
      card.say(error.message);
    }
  }

  const showSoon = settled(show);
  const narrow = settled(async () => {
    const text = find.value.trim().toLowerCase();
    const words = text ? await wordsOfAll() : {};
    if (text !== find.value.trim().toLowerCase()) return; // the text has changed in the meantime
    const found = all.filter((name) => [name, ...(words[name] ?? [])].some((each) => each.toLowerCase().includes(text)));
    if (found.length) {
      setOptions(node, chosen, found);
      showSoon();
    } else card.say(say("noneFound", { text }));
  }, TYPING);

  const changed = () => {
    ran = null;
    showSoon();
  };
  // Some pages call this once more for a linked name, after the run.
  after(chosen, "callback", () => (chosen.value === ran ? showSoon() : changed()));
  after(node, "onConfigure", changed);
  after(node, "onConnectionsChange", changed);
  after(node, "onExecuted", (message) => {
    if (message?.concept_name) ran = message.concept_name[0];
    showSoon();
  });
  // The host calls this when its user presses R, and this pack when a concept was saved.
  node.refreshComboInNode = settled(async () => {
    forgetWords();
    try {
      all = await listed();
    } catch {
      all = [...chosen.options.values]; // the host has put the new names there
    }
    if (!all.length) all = [NO_CONCEPT];
    narrow();
    showSoon();
  });
  showSoon();
  node.setSize([Math.max(WIDTH, node.size[0]), node.computeSize()[1]]);
}
