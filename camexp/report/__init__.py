"""From records to tables: reads rows, never models."""
