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
- apiGroups: [serving.m3.dev]
  resources: [m3deployments/status, m3routers/status]
  verbs: [patch]
# Workers: pods are created once, never changed, and deleted by the group.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, create, delete]
- apiGroups: [""]
  resources: [services]
  verbs: [get, list, watch, create, patch, delete]
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
