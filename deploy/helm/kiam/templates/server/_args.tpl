{{- define "kiam.server.args" -}}
{{- $server := .Values.server -}}
{{- $tls := $server.tlsCerts -}}
- --bind=[::]:{{ $server.service.port }}
- --cert=/etc/kiam/tls/{{ $tls.certFileName }}
- --key=/etc/kiam/tls/{{ $tls.keyFileName }}
- --ca=/etc/kiam/tls/{{ $tls.caFileName }}
- --admin-listen-addr={{ include "kiam.adminListen" $server }}
- --agent-auth={{ .Values.agentAuth }}
{{- if eq .Values.agentAuth "token" }}
- --agent-service-account={{ .Release.Namespace }}/{{ include "kiam.agent.serviceAccount" . }}
{{- end }}
{{- if $server.roleBaseArn }}
- --role-base-arn={{ $server.roleBaseArn }}
{{- else }}
- --role-base-arn-autodetect
{{- end }}
{{- with $server.assumeRoleArn }}
- --assume-role-arn={{ . }}
{{- end }}
{{- with $server.region }}
- --region={{ . }}
{{- end }}
- --session-duration={{ $server.sessionDuration }}
{{- if $server.serviceAccountRoles }}
- --service-account-roles
{{- end }}
{{- if $server.sessionTags }}
- --session-tags
- --cluster-name={{ .Values.clusterName }}
{{- with .Values.clusterArn }}
- --cluster-arn={{ . }}
{{- end }}
{{- end }}
{{- with $server.startupTaint }}
- --startup-taint={{ . }}
{{- end }}
{{- if $server.disableStrictNamespaceRegexp }}
- --disable-strict-namespace-regexp
{{- end }}
{{- if $server.legacyAgents }}
- --legacy-agents
{{- end }}
{{- if $server.dryRun }}
- --dry-run
{{- end }}
{{- with $server.keepaliveParams.time }}
- --grpc-keepalive-time-duration={{ . }}
{{- end }}
{{- with $server.keepaliveParams.timeout }}
- --grpc-keepalive-timeout-duration={{ . }}
{{- end }}
{{- with $server.keepaliveParams.maxConnectionIdle }}
- --grpc-max-connection-idle-duration={{ . }}
{{- end }}
{{- with $server.keepaliveParams.maxConnectionAge }}
- --grpc-max-connection-age-duration={{ . }}
{{- end }}
{{- with $server.keepaliveParams.maxConnectionAgeGrace }}
- --grpc-max-connection-age-grace-duration={{ . }}
{{- end }}
{{- if $server.log.jsonOutput }}
- --json-log
{{- end }}
- --level={{ $server.log.level }}
{{- include "kiam.extraArgs" $server.extraArgs }}
{{- end -}}
