{{- define "kiam.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "kiam.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "kiam.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "kiam.agent.fullname" -}}{{ include "kiam.fullname" . }}-{{ .Values.agent.name }}{{- end -}}
{{- define "kiam.server.fullname" -}}{{ include "kiam.fullname" . }}-{{ .Values.server.name }}{{- end -}}

{{- define "kiam.agent.serviceAccount" -}}
{{- default (include "kiam.agent.fullname" .) .Values.serviceAccounts.agent.name -}}
{{- end -}}
{{- define "kiam.server.serviceAccount" -}}
{{- default (include "kiam.server.fullname" .) .Values.serviceAccounts.server.name -}}
{{- end -}}

{{- define "kiam.agent.tlsSecret" -}}
{{- default (printf "%s-tls" (include "kiam.agent.fullname" .)) .Values.agent.tlsSecret -}}
{{- end -}}
{{- define "kiam.server.tlsSecret" -}}
{{- default (printf "%s-tls" (include "kiam.server.fullname" .)) .Values.server.tlsSecret -}}
{{- end -}}

{{/* The name agents look up, and the one their servers' certificate must be for. */}}
{{- define "kiam.server.host" -}}{{ include "kiam.server.fullname" . }}.{{ .Release.Namespace }}.svc{{- end -}}

{{- define "kiam.chart" -}}{{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}{{- end -}}

{{/* Labels that never change between versions: selectors are immutable. */}}
{{- define "kiam.selector" -}}
app.kubernetes.io/name: {{ include "kiam.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "kiam.labels" -}}
{{ include "kiam.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ include "kiam.chart" .root }}
{{- end -}}

{{/* The image of one program: its own settings, else the common ones. */}}
{{- define "kiam.image" -}}
{{- $repository := default .root.Values.image.repository .of.image.repository -}}
{{- $tag := default (default .root.Chart.AppVersion .root.Values.image.tag) .of.image.tag -}}
{{- if and .root.Values.image.digest (not .of.image.tag) (not .of.image.repository) -}}
{{ $repository }}@{{ .root.Values.image.digest }}
{{- else -}}
{{ $repository }}:{{ $tag }}
{{- end -}}
{{- end -}}

{{- define "kiam.pullPolicy" -}}
{{- default .root.Values.image.pullPolicy .of.image.pullPolicy -}}
{{- end -}}

{{/* The user's own flags, last, so that they are seen to win or to clash. */}}
{{- define "kiam.extraArgs" -}}
{{- range $flag, $value := . }}
{{- if or (kindIs "invalid" $value) (eq (toString $value) "") }}
- --{{ $flag }}
{{- else }}
- {{ printf "--%s=%s" $flag (include "kiam.scalar" $value) | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Numbers from values are floats; 1000000 must not become 1e+06. */}}
{{- define "kiam.scalar" -}}
{{- if kindIs "float64" . }}{{ if eq . (floor .) }}{{ int64 . }}{{ else }}{{ . }}{{ end }}{{ else }}{{ toString . }}{{ end -}}
{{- end -}}

{{- define "kiam.probe" -}}
httpGet:
  path: {{ .path }}
  port: {{ .admin.port }}
  {{- if not (has .admin.host (list "0.0.0.0" "[::]")) }}
  # The admin port does not listen on the pod's own address.
  host: {{ .admin.host | quote }}
  {{- end }}
{{ toYaml .timings }}
{{- end -}}

{{- define "kiam.hostPathVolumes" -}}
{{- range . }}
- name: {{ .name }}
  hostPath:
    path: {{ .hostPath }}
{{- end }}
{{- end -}}
{{- define "kiam.hostPathMounts" -}}
{{- range . }}
- name: {{ .name }}
  mountPath: {{ .mountPath }}
  readOnly: {{ .readOnly | default false }}
{{- end }}
{{- end -}}

{{/* How IPv6 literals and names are joined with a port. */}}
{{- define "kiam.listen" -}}{{ .host }}:{{ .port }}{{- end -}}
