// Training Options: a preset fills the settings of each Train Concept that the node is connected to with what suits a base. The
// settings are then plain values like any others; "as set" leaves them alone, and "by checkpoint" chooses the preset that suits the
// checkpoint from which Train Concept gets its model.
import { app } from "../../scripts/app.js";
import { presetFor } from "./server.js";
import { isAsMade } from "./settings.js";
import { say } from "./texts.js";
import { after, changing, isLinked, named } from "./widgets.js";

const BY_CHECKPOINT = "by checkpoint";
const FOLDERS = { ckpt_name: "checkpoints", unet_name: "diffusion_models" };
const FARTHEST = 50; // nodes between a training and its checkpoint

const COMMON = { steps: 400, word_rate: 0.0003, output_rate: 0.03, train_bias: 0.75, train_temperature: 0.1, flip: 0.5, min_snr: 0 };
export const PRESETS = {
  "SD1.5": { ...COMMON, size: 512, batch: 8 },
  SD2: { ...COMMON, size: 768, batch: 8 },
  SDXL: { ...COMMON, size: 1024, batch: 4 },
  demo: {
    steps: 300, word_rate: 0.001, output_rate: 1, train_bias: 0.4, train_temperature: 0.15, flip: 0, min_snr: 5, size: 96, batch: 4,
  },
};

function trainingsOf(node) {
  const links = node.outputs?.[0]?.links ?? [];
  return links.map((id) => node.graph.getNodeById(node.graph.getLink(id)?.target_id)).filter((each) => each?.comfyClass === "PerfusionTrain");
}

// The folder and the name of the file from which a node gets its MODEL, through any nodes in between; null if that cannot be seen.
function checkpointOf(node) {
  for (let i = 0; node && i < FARTHEST; i++) {
    const name = Object.keys(FOLDERS).find((each) => named(node, each));
    if (name) return isLinked(node, name) ? null : [FOLDERS[name], named(node, name).value];
    const slot = node.inputs?.findIndex((input) => ["MODEL", "*"].includes(input.type) && input.link != null) ?? -1;
    node = slot < 0 ? null : node.getInputNode(slot);
  }
  return null;
}

async function presetOf(training) {
  const checkpoint = checkpointOf(training);
  const preset = checkpoint && (await presetFor(...checkpoint));
  if (!preset) throw new Error(say(checkpoint ? "noPreset" : "noCheckpoint", { file: checkpoint?.[1] }));
  return preset;
}

async function fill(node, trainings) {
  const chosen = named(node, "preset").value;
  const found = []; // all of it is known before anything changes, so that one Ctrl+Z takes it back
  for (const training of trainings) {
    try {
      found.push([training, PRESETS[chosen === BY_CHECKPOINT ? await presetOf(training) : chosen] ?? {}]);
    } catch (error) {
      app.extensionManager?.toast?.add({ severity: "warn", summary: "Perfusion", detail: error.message, life: 10000 });
    }
  }
  if (chosen !== named(node, "preset").value) return; // another was chosen in the meantime
  changing(() => found.forEach(([training, values]) => write(training, values)));
}

function write(training, values) {
  for (const [name, value] of Object.entries(values)) {
    const widget = named(training, name);
    widget.value = value;
    widget.callback?.(value);
  }
  training.setDirtyCanvas?.(true, true);
}

export function setUpOptions(node) {
  after(named(node, "preset"), "callback", () => fill(node, trainingsOf(node)));
  // A preset chosen before the two were connected counts then, but not for a training that has values of its own: it may have been
  // pasted, or a workflow is being loaded.
  after(node, "onConnectOutput", (output, type, input, other) =>
    setTimeout(() => fill(node, trainingsOf(node).filter((training) => training === other && isAsMade(training, Object.keys(PRESETS.demo))))),
  );
}
