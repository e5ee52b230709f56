{{- define "m3serve.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "m3serve.fullname" -}}
{{- $name := include "m3serve.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* ClusterRoles have no namespace: two releases of one name in two namespaces must not share them. */}}
{{- define "m3serve.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "m3serve.fullname" .) | trunc 120 | trimSuffix "-" }}
{{- end }}

{{- define "m3serve.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (printf "%s-operator" (include "m3serve.fullname" .)) .Values.serviceAccount.name }}
{{- else }}
{{- required "serviceAccount.name is needed when serviceAccount.create is false: it is the account the operator runs as" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "m3serve.selectorLabels" -}}
app.kubernetes.io/name: {{ include "m3serve.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "m3serve.commonLabels" -}}
app.kubernetes.io/part-of: m3serve
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "m3serve.labels" -}}
{{ include "m3serve.selectorLabels" . }}
{{ include "m3serve.commonLabels" . }}
{{- end }}

{{/* image: (dict "image" IMAGE-VALUES "root" $) */}}
{{- define "m3serve.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ default .root.Chart.AppVersion .image.tag }}
{{- end }}
{{- end }}

{{/* The restricted Pod Security Standard, and a read-only root file system on top of it. */}}
{{- define "m3serve.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "m3serve.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}
