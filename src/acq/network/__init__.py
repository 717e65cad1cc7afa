"""The float network: trace, structure, attention and teacher."""
