"""Whatever renders records: cards, tables, pictures."""
