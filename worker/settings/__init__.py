"""The settings of an application: one YAML document, checked as a whole."""
