"""Whatever makes models: prompt tuning, adapters with their cards, demos, the zoo, the forms of planted triggers."""
