"""From stored records and predictions to statistics, tables and figures."""
