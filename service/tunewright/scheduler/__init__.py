"""The scheduler owns the devices: it claims jobs, starts and watches the processes of jobs and engines, and brings them
into the state that the store says is desired. Imports no `api/`."""
