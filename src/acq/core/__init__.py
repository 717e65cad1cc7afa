"""Values that flow between the parts, and arithmetic that several parts share."""
