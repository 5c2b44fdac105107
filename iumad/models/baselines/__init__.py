"""The field's other systems under one protocol: a module each, none of them a port of its authors' code."""
