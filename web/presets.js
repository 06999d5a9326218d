// Training Options: a preset fills the settings of each Train Concept that the node is connected to with what suits a base. The
// settings are then plain values like any others; "as set" leaves them alone.
import { after, changing, named } from "./widgets.js";

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

function fill(node) {
  const values = PRESETS[named(node, "preset").value] ?? {};
  changing(() => {
    for (const training of trainingsOf(node)) {
      for (const [name, value] of Object.entries(values)) {
        const widget = named(training, name);
        widget.value = value;
        widget.callback?.(value);
      }
      training.setDirtyCanvas?.(true, true);
    }
  });
}

export function setUpOptions(node) {
  after(named(node, "preset"), "callback", () => fill(node));
  // A preset chosen before the two were connected counts then. A workflow that is being loaded has its values already.
  after(node, "onConnectOutput", () => setTimeout(() => fill(node)));
}
