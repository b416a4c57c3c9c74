{{/* Where the agent is. Both containers need it, so it is one list. */}}
{{- define "kiam.nodeEnv" -}}
- name: NODE_NAME
  valueFrom:
    fieldRef:
      fieldPath: spec.nodeName
- name: HOST_IP
  valueFrom:
    fieldRef:
      fieldPath: {{ if include "kiam.dualStack" . }}status.hostIPs{{ else }}status.hostIP{{ end }}
{{- if and (include "kiam.dualStack" .) .Values.agent.containerCredentials.enabled .Values.agent.containerCredentials.redirect }}
# The second door has one address.
- name: FIRST_HOST_IP
  valueFrom:
    fieldRef:
      fieldPath: status.hostIP
{{- end }}
{{- end -}}

{{- define "kiam.dualStack" -}}{{ if gt (len .Values.agent.host.ipFamilies) 1 }}yes{{ end }}{{- end -}}

{{/* The node's address as it is put before a port. */}}
{{- define "kiam.doorHost" -}}
{{- $host := ternary "$(FIRST_HOST_IP)" "$(HOST_IP)" (eq (include "kiam.dualStack" .) "yes") -}}
{{- if eq (first .Values.agent.host.ipFamilies) "IPv6" }}[{{ $host }}]{{ else }}{{ $host }}{{ end -}}
{{- end -}}

{{/* What the init container installs and the agent beside it verifies, or puts back: the same words. */}}
{{- define "kiam.interceptArgs" -}}
- --intercept={{ include "kiam.intercept" . }}
- --port={{ .Values.agent.host.port }}
- {{ printf "--host-interface=%s" .Values.agent.host.interface | quote }}
{{- end -}}

{{- define "kiam.agent.args" -}}
{{- $agent := .Values.agent -}}
{{- $tls := $agent.tlsCerts -}}
{{- if ne (include "kiam.intercept" .) "none" }}
{{- include "kiam.interceptArgs" . }}
{{- else }}
- --intercept=none
- --port={{ $agent.host.port }}
{{- end }}
- --server-address={{ $agent.serverAddress | default (printf "%s:%v" (include "kiam.server.host" .) .Values.server.service.port) }}
- --ca=/etc/kiam/tls/{{ $tls.caFileName }}
{{- if eq .Values.agentAuth "token" }}
- --token-file=/var/run/secrets/kiam/token
{{- else }}
- --cert=/etc/kiam/tls/{{ $tls.certFileName }}
- --key=/etc/kiam/tls/{{ $tls.keyFileName }}
{{- end }}
- --admin-listen-addr={{ include "kiam.adminListen" $agent }}
{{- with $agent.handoverDir }}
- --handover-dir={{ . }}
{{- end }}
- --driver={{ $agent.driver }}
- --workers={{ $agent.workers }}
- --scheduling={{ $agent.scheduling }}
{{- with $agent.allowRouteRegexp }}
- {{ printf "--allow-route-regexp=%s" . | quote }}
{{- end }}
{{- if $agent.imdsV2Only }}
- --imds-v2-only
{{- end }}
{{- if $agent.auditLog }}
- --audit-log
{{- end }}
{{- if $agent.containerCredentials.enabled }}
{{- if $agent.containerCredentials.redirect }}
- {{ printf "--container-credentials-listen=%s:%v" (include "kiam.doorHost" .) $agent.containerCredentials.port | quote }}
{{- else }}
- {{ printf "--container-credentials-listen=%s" $agent.containerCredentials.address | quote }}
{{- end }}
- --container-credentials-audience={{ $agent.containerCredentials.audience }}
{{- end }}
{{- with $agent.gatewayTimeoutCreation }}
- --gateway-timeout-creation={{ . }}
{{- end }}
{{- with $agent.keepaliveParams.time }}
- --grpc-keepalive-time-duration={{ . }}
{{- end }}
{{- with $agent.keepaliveParams.timeout }}
- --grpc-keepalive-timeout-duration={{ . }}
{{- end }}
{{- if $agent.log.jsonOutput }}
- --json-log
{{- end }}
- --level={{ $agent.log.level }}
{{- include "kiam.extraArgs" $agent.extraArgs }}
{{- end -}}
