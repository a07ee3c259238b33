"""Our models in the tools that people already use; each in a module of its own, with an extra of its own."""
