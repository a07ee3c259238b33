"""The command `rmat`, one file a command. Arguments are parsed before torch is imported, so help and mistakes
are quick."""
