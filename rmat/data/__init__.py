"""Text in, batches of tokens out; nothing here knows about models.

The way of a document: `sources` reads it, `documents` says which parts of it are text and which are special
tokens, `tokenizer` turns it into ids, `store` keeps these in memory-mapped shards, and `lanes` reads them as
continuing rows. `corpus.load_corpus` composes the first four; `synthetic` makes tokens that need no source.

Nothing is imported here, so that reading a configuration costs no import of torch.
"""
