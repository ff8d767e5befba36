{{/*
Names are fixed, whatever the release is called: the webhooks and the APIService are one a cluster, sidecars and docs know the
Services by name, and a second installation would fight the first one for pods.
*/}}

{{- define "fetchr.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/part-of: fetchr
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{ include "fetchr.selectorLabels" . }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "fetchr.selectorLabels" -}}
app.kubernetes.io/name: fetchr-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* An image's whole name. Takes a dict: image, tag (the default one). */}}
{{- define "fetchr.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ .image.tag | default .tag }}
{{- end -}}
{{- end }}

{{- define "fetchr.operatorImage" -}}
{{ include "fetchr.image" (dict "image" .Values.image "tag" .Chart.AppVersion) }}
{{- end }}

{{- define "fetchr.sidecarImage" -}}
{{ include "fetchr.image" (dict "image" .Values.sidecar.image "tag" .Chart.AppVersion) }}
{{- end }}

{{/* What the standard `restricted` asks of a pod and of its containers. */}}
{{- define "fetchr.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "fetchr.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
readOnlyRootFilesystem: true
{{- end }}

{{/* DNS and the API server: all that the operator and its clean-up reach out to. */}}
{{- define "fetchr.egress" -}}
- ports:
  - {port: 53, protocol: UDP}
  - {port: 53, protocol: TCP}
- ports:
  {{- range .Values.networkPolicy.apiServerPorts }}
  - {port: {{ . }}, protocol: TCP}
  {{- end }}
{{- end }}
