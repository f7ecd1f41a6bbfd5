"""Reports: one self-contained HTML page per stage, for a browser, a printer and the KFP UI's sandboxed frame."""
