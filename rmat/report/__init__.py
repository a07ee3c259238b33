"""One page that shows what a memory does with a text: traced from the model, told as data, drawn as HTML."""
