"""Training: stateful truncated back-propagation with exact resume.

Read in this order: `config` (what can be set), `loop` (one run from top to bottom), `step` (one update),
`checkpoint` (what is kept so that an interrupted run equals an uninterrupted one).
"""
