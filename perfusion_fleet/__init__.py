"""Parallel training of many concepts with Ray: `perfusion-train`.

`table` reads the concepts to train, `inside` sets up the host without its server, `worker` trains there with the pack's own node,
`settings` validates that node's widget values, `schedule` distributes the jobs to workers on Ray, `index` writes the results'
index, and `command` is the command line.
"""
