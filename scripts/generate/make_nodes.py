"""Take the pictures of docs/nodes.md: `python -m scripts.generate.make_nodes` in the set-up's environment; it takes a minute.

They show all nodes of the pack on ComfyUI's page, in the classic renderer and in Nodes 2.0.
"""

from __future__ import annotations

import json

from scripts.generate.make_walk import shot
from scripts.harness.page import Page
from scripts.harness.server import Server
from scripts.setup import bootstrap, browser, steps

COLUMNS = (
    ("PerfusionTrain", "PerfusionTrainingOptions"),
    ("PerfusionLoadConcept", "PerfusionConceptInWorkflow", "PerfusionLoadConcepts", "PerfusionSaveConcept"),
    ("PerfusionConceptSettings", "PerfusionCombineConcepts", "PerfusionApply", "PerfusionTextEncode", "PerfusionFindObject"),
    ("PerfusionAutoBias", "PerfusionSweep", "PerfusionInspect"),
    ("PerfusionWatchAttention", "PerfusionShowAttention", "PerfusionKeepLayout", "PerfusionCovariance"),
    ("PerfusionConceptSchedule", "PerfusionImport", "PerfusionExport"),
)
ROWS = [
    {"name": "demo-monster.safetensors", "on": True, "strength": 1, "bias": None},
    {"name": "demo-robot.safetensors", "on": True, "strength": 0.8, "bias": 0.5},
]
PLACE = """([columns]) => columns.forEach((names, i) => {
    let top = 0;
    names.forEach(name => {
        const node = LiteGraph.createNode(name);
        node.pos = [i * 400, top]; app.graph.add(node);
        node.setSize([360, node.computeSize()[1]]);
        top += node.size[1] + 165;
    });
})"""
FILL = """([rows]) => {
    const of = type => app.graph._nodes.find(node => node.type === type);
    const widget = (node, name) => node.widgets.find(each => each.name === name);
    widget(of('PerfusionLoadConcepts'), 'concepts').value = rows;
    of('PerfusionLoadConcepts').onConfigure();
    const said = ['saved as my-teddy.safetensors', 'trigger word: <my-teddy>', 'superclass: teddy'].join('\\n');
    of('PerfusionSaveConcept').onExecuted({ text: [said] });
    const hold = widget(of('PerfusionConceptInWorkflow'), 'hold');
    hold.value = 'demo-robot.safetensors'; hold.callback(hold.value);
}"""


def main() -> int:
    """Open the page in both renderers and take a picture of each."""
    setup = bootstrap.locate()
    with Server(setup, base=bootstrap.fresh_base(setup, "nodes-base")) as server, browser.launched() as chromium:
        for new, name in ((False, "nodes_classic"), (True, "nodes_new")):
            page = Page(chromium, server, new_renderer=new)
            page.empty()
            page.ask(PLACE, COLUMNS)
            page.tab.wait_for_timeout(1500)
            page.ask(FILL, json.dumps(ROWS))
            page.tab.evaluate("() => Object.assign(app.canvas.ds, { scale: 0.64, offset: [150, 180] })")
            page.tab.evaluate("() => app.canvas.setDirty(true, true)")
            page.tab.wait_for_timeout(2500)
            shot(page, name)
            page.close()
    return 0


if __name__ == "__main__":
    steps.exit_with(main)
