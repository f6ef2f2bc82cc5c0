"""`dorado env check`: whether an environment keeps its promises. No model is needed."""
