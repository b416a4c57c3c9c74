{{/* A headless Service over the admin ports, and a monitor of it. */}}
{{- define "kiam.metrics" -}}
{{- $prometheus := .of.prometheus -}}
{{- $port := include "kiam.adminPort" .of -}}
{{- $labels := include "kiam.labels" (dict "root" .root "component" .of.name) -}}
{{- $selector := include "kiam.selector" (dict "root" .root "component" .of.name) -}}
{{- if or $prometheus.scrape $prometheus.servicemonitor.enabled }}
apiVersion: v1
kind: Service
metadata:
  name: {{ .fullname }}-metrics
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- $labels | nindent 4 }}
    {{- with .of.serviceLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- if or $prometheus.scrape .of.serviceAnnotations }}
  annotations:
    {{- if $prometheus.scrape }}
    prometheus.io/scrape: "true"
    prometheus.io/port: {{ $port | quote }}
    prometheus.io/path: {{ $prometheus.servicemonitor.path }}
    {{- end }}
    {{- with .of.serviceAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
spec:
  clusterIP: None
  # What is not ready is what one wants to see.
  publishNotReadyAddresses: true
  selector:
    {{- $selector | nindent 4 }}
  ports:
    - name: metrics
      port: {{ $port }}
      targetPort: {{ $port }}
{{- end }}
{{- if $prometheus.servicemonitor.enabled }}
---
apiVersion: monitoring.coreos.com/v1
kind: ServiceMonitor
metadata:
  name: {{ .fullname }}
  namespace: {{ $prometheus.servicemonitor.namespace | default .root.Release.Namespace }}
  labels:
    {{- $labels | nindent 4 }}
    {{- with $prometheus.servicemonitor.labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  namespaceSelector:
    matchNames: [{{ .root.Release.Namespace }}]
  selector:
    matchLabels:
      {{- $selector | nindent 6 }}
  endpoints:
    - port: metrics
      path: {{ $prometheus.servicemonitor.path }}
      interval: {{ $prometheus.servicemonitor.interval }}
      relabelings:
        - sourceLabels: [__meta_kubernetes_pod_node_name]
          targetLabel: node
{{- end }}
{{- if $prometheus.podmonitor.enabled }}
---
apiVersion: monitoring.coreos.com/v1
kind: PodMonitor
metadata:
  name: {{ .fullname }}
  namespace: {{ $prometheus.podmonitor.namespace | default .root.Release.Namespace }}
  labels:
    {{- $labels | nindent 4 }}
    {{- with $prometheus.podmonitor.labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  namespaceSelector:
    matchNames: [{{ .root.Release.Namespace }}]
  selector:
    matchLabels:
      {{- $selector | nindent 6 }}
  podMetricsEndpoints:
    # The admin port is not declared on the container, so the target is put together here.
    - path: {{ $prometheus.podmonitor.path }}
      interval: {{ $prometheus.podmonitor.interval }}
      relabelings:
        - action: drop
          sourceLabels: [__meta_kubernetes_pod_container_init]
          regex: "true"
        - sourceLabels: [__meta_kubernetes_pod_ip]
          regex: '([0-9.]+)'
          replacement: '$1:{{ $port }}'
          targetLabel: __address__
        - sourceLabels: [__meta_kubernetes_pod_ip]
          regex: '(.*:.*)'
          replacement: '[$1]:{{ $port }}'
          targetLabel: __address__
        - sourceLabels: [__meta_kubernetes_pod_node_name]
          targetLabel: node
{{- end }}
{{- end -}}
