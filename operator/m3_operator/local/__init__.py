"""`m3 up`: what the operator would put into pods, run as processes of this machine.

The way of one run: `up.up` → `documents.read_documents` → `machine.survey` → `processes.plan` → `supervisor.Supervisor`
→ `console.Display`, and with --check `check.check_endpoint`.
"""
