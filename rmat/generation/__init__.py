"""Text from a model: how a token is chosen (`sampling`), where a text stops (`stopping`), the loop
(`stream`)."""
