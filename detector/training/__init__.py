"""How a checkpoint is learnt."""
