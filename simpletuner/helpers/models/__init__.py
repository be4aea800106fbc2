"""Model foundations: what loads, feeds and trains one model family each. `registry` knows them all."""
