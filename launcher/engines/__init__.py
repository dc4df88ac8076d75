"""From a run to the command lines that carry it out, one module per engine. PURE."""
