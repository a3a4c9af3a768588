{{- define "checkpointd.name" -}}
{{- if contains "checkpointd" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-checkpointd" .Release.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "checkpointd.selector" -}}
app.kubernetes.io/name: checkpointd
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "checkpointd.labels" -}}
{{ include "checkpointd.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "checkpointd.image" -}}
{{- with .Values.image }}{{ if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}{{ end }}
{{- end }}

{{- define "checkpointd.podSecurity" -}}
runAsNonRoot: true
runAsUser: 1000
runAsGroup: 1000
# The secrets' files are root's; this group may read them.
fsGroup: 1000
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "checkpointd.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* The key of a secret as the only file of a volume. */}}
{{- define "checkpointd.secretVolume" -}}
secret:
  secretName: {{ .secret | quote }}
  # Read by the group alone.
  defaultMode: 0440
  {{- if .keys }}
  items:
    {{- range .keys }}
    - key: {{ . | quote }}
      path: {{ . | quote }}
    {{- end }}
  {{- end }}
{{- end }}

{{/* What cannot start is told here, before it is tried. */}}
{{- define "checkpointd.check" -}}
{{- if not .Values.database.secret }}{{ fail "database.secret: name the secret that has the database's URL" }}{{ end }}
{{- if not .Values.insecure }}
{{- if not .Values.auth.secret }}{{ fail "auth.secret: name the secret that has the auth file, or set insecure: true" }}{{ end }}
{{- if not (or .Values.tls.secret .Values.tls.behindProxy) }}{{ fail "tls.secret: name the secret that has tls.crt and tls.key, or set tls.behindProxy: true, or insecure: true" }}{{ end }}
{{- end }}
{{- if and .Values.tls.clientCaKey (not .Values.tls.secret) }}{{ fail "tls.clientCaKey wants tls.secret" }}{{ end }}
{{- if eq (int .Values.metrics.port) (int .Values.port) }}{{ fail "metrics.port: must be another than port" }}{{ end }}
{{- if lt (int .Values.autoscaling.maxReplicas) (int .Values.autoscaling.minReplicas) }}{{ fail "autoscaling.maxReplicas: must not be less than minReplicas" }}{{ end }}
{{- end }}

{{/* Where a pod may go. */}}
{{- define "checkpointd.egress" -}}
- ports:
    - { port: 53, protocol: UDP }
    - { port: 53, protocol: TCP }
- ports:
    {{- range .Values.networkPolicy.databasePorts }}
    - { port: {{ . }}, protocol: TCP }
    {{- end }}
  {{- with .Values.networkPolicy.databaseTo }}
  to: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
