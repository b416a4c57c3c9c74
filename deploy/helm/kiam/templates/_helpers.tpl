{{- define "kiam.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Short enough for the longest name made of it, a Service's `<fullname>-<component>-metrics`, to have 63 characters. */}}
{{- define "kiam.fullname" -}}
{{- $room := sub 54 (max (len .Values.agent.name) (len .Values.server.name)) | int -}}
{{- $name := include "kiam.name" . -}}
{{- $full := printf "%s-%s" .Release.Name $name -}}
{{- if .Values.fullnameOverride -}}
{{- $full = .Values.fullnameOverride -}}
{{- else if contains $name .Release.Name -}}
{{- $full = .Release.Name -}}
{{- end -}}
{{- $full | trunc $room | trimSuffix "-" -}}
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

{{/* The admin port. A server in the node's network leaves 9620 to the node's agent. */}}
{{- define "kiam.adminPort" -}}
{{- .prometheus.port | default (ternary 9621 9620 (.useHostNetwork | default false)) | int -}}
{{- end -}}

{{- define "kiam.adminListen" -}}{{ .prometheus.host }}:{{ include "kiam.adminPort" . }}{{- end -}}

{{/* The same as a program in the same container asks it. */}}
{{- define "kiam.adminAddress" -}}
{{- ternary "localhost" .prometheus.host (has .prometheus.host (list "0.0.0.0" "[::]")) }}:{{ include "kiam.adminPort" . }}
{{- end -}}

{{/* A port on loopback can only be asked from the network it is in. */}}
{{- define "kiam.onLoopback" -}}
{{- if or (has . (list "localhost" "[::1]" "::1")) (hasPrefix "127." .) }}yes{{ end -}}
{{- end -}}

{{- define "kiam.probe" -}}
httpGet:
  path: {{ .path }}
  port: {{ include "kiam.adminPort" .of }}
  {{- if not (has .of.prometheus.host (list "0.0.0.0" "[::]")) }}
  # The admin port does not listen on the pod's own address. The kubelet puts brackets round it itself.
  host: {{ .of.prometheus.host | trimPrefix "[" | trimSuffix "]" | quote }}
  {{- end }}
{{ toYaml .timings }}
{{- end -}}

{{/*
A strategy may be kiam's one word. `rollingUpdate` belongs to RollingUpdate alone, also where it is a
default that the given type was merged with.
*/}}
{{- define "kiam.strategyType" -}}
{{- if kindIs "string" . }}{{ . }}{{ else }}{{ (. | default dict).type | default "RollingUpdate" }}{{ end -}}
{{- end -}}

{{/* A DaemonSet surges or goes without, not both: what is given makes the other 0. */}}
{{- define "kiam.agent.rollingUpdate" -}}
{{- $given := dict -}}
{{- if kindIs "map" .Values.agent.updateStrategy -}}{{- $given = .Values.agent.updateStrategy.rollingUpdate | default dict -}}{{- end -}}
{{- $unavailable := get $given "maxUnavailable" | default 0 -}}
{{- $surge := ternary (get $given "maxSurge") (ternary 1 0 (include "kiam.isZero" $unavailable | eq "yes")) (hasKey $given "maxSurge") -}}
{{- toYaml (dict "maxSurge" $surge "maxUnavailable" $unavailable) -}}
{{- end -}}

{{- define "kiam.isZero" -}}{{- if eq (trimSuffix "%" (toString .)) "0" }}yes{{ end -}}{{- end -}}

{{- define "kiam.agent.updateStrategy" -}}
{{- $type := include "kiam.strategyType" .Values.agent.updateStrategy -}}
{{- if eq $type "RollingUpdate" }}
rollingUpdate:
  {{- include "kiam.agent.rollingUpdate" . | nindent 2 }}
{{- end }}
type: {{ $type }}
{{- end -}}

{{- define "kiam.server.rollingUpdate" -}}
{{- $given := dict -}}
{{- if kindIs "map" .Values.server.updateStrategy -}}{{- $given = .Values.server.updateStrategy.rollingUpdate | default dict -}}{{- end -}}
{{- toYaml (merge dict $given (dict "maxSurge" 0 "maxUnavailable" 1)) -}}
{{- end -}}

{{- define "kiam.server.updateStrategy" -}}
{{- $type := include "kiam.strategyType" .Values.server.updateStrategy -}}
{{- if eq $type "RollingUpdate" }}
rollingUpdate:
  {{- include "kiam.server.rollingUpdate" . | nindent 2 }}
{{- end }}
type: {{ $type }}
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
