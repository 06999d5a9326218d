"""Many concepts, taught side by side on Ray: `perfusion-train`.

`table` reads what is to be taught, `inside` enters the host without its server, `worker` teaches there with the pack's own node,
`settings` are that node's widgets, `schedule` hands the work to workers on Ray, `index` is what is written of it, `command` the
command line.
"""
