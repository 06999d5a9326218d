// What this pack adds to ComfyUI's page.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { setUpHolding } from "./holding.js";
import { setUpLoading } from "./loading.js";
import { setUpMany } from "./many.js";
import { setUpMessages } from "./messages.js";
import { setUpOptions } from "./presets.js";
import { forgetWords } from "./server.js";
import { setUpSettings } from "./settings.js";
import { loadTexts } from "./texts.js";
import { completeTriggers } from "./triggers.js";

const LISTING = { PerfusionLoadConcept: setUpLoading, PerfusionConceptInWorkflow: setUpHolding, PerfusionLoadConcepts: setUpMany };
const OTHERS = {
  PerfusionTrain: setUpSettings,
  PerfusionTrainingOptions: setUpOptions,
  PerfusionSaveConcept: setUpMessages,
  PerfusionExport: setUpMessages,
  PerfusionImport: setUpMessages,
  PerfusionCovariance: setUpMessages,
};

// All nodes of the graph and of its subgraphs.
function nodesOf(graph) {
  return (graph?.nodes ?? graph?._nodes ?? []).flatMap((node) => [node, ...(node.subgraph ? nodesOf(node.subgraph) : [])]);
}

// The files of the concepts that the graph uses.
function namesInUse() {
  const names = nodesOf(app.rootGraph ?? app.graph)
    .filter((node) => node.comfyClass in LISTING)
    .flatMap((node) => node.widgets ?? [])
    .flatMap((widget) => {
      if (widget.name === "concept_name") return [widget.value];
      if (widget.name !== "concepts") return [];
      try {
        return JSON.parse(widget.value || "[]").map((row) => row.name);
      } catch {
        return [];
      }
    });
  return new Set(names);
}

app.registerExtension({
  name: "perfusion",
  async setup() {
    await loadTexts();
    completeTriggers(namesInUse);
    // A concept that a node has saved is in all lists at once.
    api.addEventListener("executed", ({ detail }) => {
      if (!detail?.output?.perfusion_saved) return;
      forgetWords();
      for (const node of nodesOf(app.rootGraph ?? app.graph)) if (node.comfyClass in LISTING) node.refreshComboInNode?.();
    });
  },
  refreshComboInNodes() {
    forgetWords(); // R was pressed
  },
  nodeCreated(node) {
    (LISTING[node.comfyClass] ?? OTHERS[node.comfyClass])?.(node);
  },
});
