{{/*
Exactly what the operator does, object by object: one list for the Role and for the ClusterRole.
Secrets are created and never read: an API key that the operator made stays where it is.
*/}}
{{- define "m3serve.operatorRules" -}}
# The custom resources. An M3Router is also made, and removed, for a deployment that names none.
- apiGroups: [serving.m3.dev]
  resources: [m3deployments]
  verbs: [list, watch]
- apiGroups: [serving.m3.dev]
  resources: [m3routers]
  verbs: [get, list, watch, create, patch, delete]
# Tenants are read, and told where they are accepted; their Secrets are mounted by the routers and read by nobody here.
- apiGroups: [serving.m3.dev]
  resources: [m3tenants]
  verbs: [list, watch]
- apiGroups: [serving.m3.dev]
  resources: [m3deployments/status, m3routers/status, m3tenants/status]
  verbs: [patch]
# Workers: pods are created once and deleted by the group. The one change is to take our own scheduling gate away, when
# it is a group's turn.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, create, patch, delete]
# What a group's pods name, where the cluster has it: PodGroups of whoever schedules groups as wholes, DRA claims.
- apiGroups: [scheduling.k8s.io, scheduling.volcano.sh, scheduling.x-k8s.io]
  resources: [podgroups]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [resource.k8s.io]
  resources: [resourceclaimtemplates]
  verbs: [get, list, watch, create, patch, delete]
# Who may talk to workers, and who reads their metrics (Prometheus operator), where a spec asks for it.
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [monitoring.coreos.com]
  resources: [podmonitors]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services]
  verbs: [get, list, watch, create, patch, delete]
# One budget for the evictions of each deployment's groups.
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
# Revisions of workers' specs: created once, never changed, and deleted when nothing can go back to them any more.
- apiGroups: [apps]
  resources: [controllerrevisions]
  verbs: [get, list, watch, create, delete]
# A model that is downloaded once: the Job that does it, and the volume that keeps it. Neither is ever changed.
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, delete]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, list, watch, create, delete]
# Routers.
- apiGroups: [""]
  resources: [configmaps, serviceaccounts]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [secrets]
  verbs: [create]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [roles, rolebindings]
  verbs: [get, list, watch, create, patch, delete]
# Autoscalers of others, made where spec.autoscaling asks for one. KEDA need not be there.
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [keda.sh]
  resources: [scaledobjects]
  verbs: [get, list, watch, create, patch, delete]
# Held only to be given on: nobody may grant what they do not have, and routers watch their workers' endpoints.
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [get, list, watch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
{{- end }}

{{/* Of all Leases the one that says which replica acts, in the release's namespace alone, whatever the operator watches. */}}
{{- define "m3serve.leaderRules" -}}
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [m3-operator]
  verbs: [get, create, update]
{{- end }}
