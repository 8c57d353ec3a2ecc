"""What the service must not forget: tables, transitions, desired state. Database only; no files, no HTTP."""
